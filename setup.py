"Package facts live in `settings.ini`; the job notebooks, the recipes and the sample travel inside the wheel."
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

parser = ConfigParser(delimiters=["="])
parser.read("settings.ini", encoding="utf-8")
facts = parser["DEFAULT"]


class BuildWithNotebooks(build_py):
    "Copy `nbs/jobs` to `geoseg_nb/_jobs` and `runs` to `geoseg_nb/_runs` when a wheel is built"

    def run(self):
        super().run()
        if self.editable_mode: return
        for source, name in (("nbs/jobs", "_jobs"), ("runs", "_runs")):
            shutil.copytree(source, Path(self.build_lib, "geoseg_nb", name), dirs_exist_ok=True,
                            ignore=shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__"))


setup(
    name=facts["lib_name"],
    version=facts["version"],
    description=facts["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license=facts["license"],
    license_files=["LICENSE", "NOTICE"],
    packages=["geoseg_nb"],
    python_requires=f'>={facts["min_python"]}',
    install_requires=facts["requirements"].split(),
    extras_require={key[6:]: facts[key].split() for key in facts if key.startswith("extra_")},
    entry_points={"console_scripts": facts["console_scripts"].split(), "nbdev": ["geoseg_nb=geoseg_nb._modidx:d"]},
    classifiers=["Programming Language :: Python :: 3.11", "Programming Language :: Python :: 3.12",
                 "Programming Language :: Python :: 3.13", "Topic :: Scientific/Engineering :: GIS"],
    cmdclass={"build_py": BuildWithNotebooks},
)
