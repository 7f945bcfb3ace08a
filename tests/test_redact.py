"Which names of variables are those of secrets, and which values"
import json
import time

import pytest
from geoseg_nb.core import Refused
from geoseg_nb.doctor import variable
from geoseg_nb.findings import hide
from geoseg_nb.jobs import refuse_secret
from geoseg_nb.redact import masked, names_secret, says_secret, secret_values
from geoseg_nb.storage import expanded
from hypothesis import given
from hypothesis import strategies as st

SECRETS = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "PGPASSWORD", "DB_PASS", "PASS", "SMTP_PASS2", "MYSQL_PWD",
           "DB_PWD", "SQLCMDPWD", "DBPASSWORD", "MYSQL_ROOT_PASSWORD", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY", "AZURE_STORAGE_CONNECTION_STRING",
           "GOOGLE_CREDENTIALS", "GCPCREDENTIALS", "CLIENT_SECRET", "OPENAI_APIKEY", "dbPassword", "secretAccessKey", "db-password", "SSH_KEY", "GITHUB_JWT",
           "GITHUB_PAT", "AZURE_DEVOPS_EXT_PAT", "GL_PAT2", "HF_TOKENS", "API_TOKENS", "DOCKER_AUTH_CONFIG"]
ORDINARY = ["PASSAGE", "COMPASS", "BYPASS", "monkey_count", "MONKEY", "PWD", "OLDPWD", "GROUP_KEY", "TOKENIZERS_PARALLELISM", "KEYBOARD", "HOME", "PATH",
            "XDG_SESSION_TYPE", "SECRETARY", "high_pass", "low_pass", "pass_rate", "passes", "author_key", "sort_key", "GEOSEG_RUNS",
            "PYTHONPATH", "MY_PATCH", "PATTERN", "FILE_PATTERN", "SPAT", "PAT"]
PLAINLY = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "PGPASSWORD", "MYSQL_ROOT_PASSWORD",
           "GOOGLE_CREDENTIALS", "CLIENT_SECRET", "OPENAI_APIKEY", "db-password", "db_passwd", "api_key", "access_key", "GITHUB_PAT", "HF_TOKENS", "DOCKER_AUTH_CONFIG"]
PARAMETERS = ["n_pass", "first_pass", "mountain_pass", "session_key", "storage_key", "shared_key", "single_pass", "master_key"]  # in the environment they would be secrets
CANARY = "canary-7f31/x"


@pytest.mark.parametrize("name", SECRETS)
def test_what_a_secret_is_called(name, monkeypatch):
    "Masked in texts, refused as the beginning of a path, and as a parameter where the name is plain"
    assert names_secret(name) and masked(f"it is {CANARY}.", {name: CANARY}) == "it is ***."
    monkeypatch.setenv(name, CANARY)
    for refuses in [lambda: expanded(f"${name}/x")] * name.isidentifier() + [lambda: refuse_secret(name)] * (name in PLAINLY):
        with pytest.raises(Refused, match="credential") as caught: refuses()
        assert CANARY not in str(caught.value)
    assert hide({name: CANARY, "said": f"it is {CANARY}"}) == {name: "***", "said": "it is ***"}
    found = variable(f"GEOSEG_{name}", CANARY)
    assert found.state == "warn" and "credential" in found.text and CANARY not in found.text + found.advice


@pytest.mark.parametrize("name", PLAINLY + PARAMETERS)
def test_a_parameter_and_a_key_of_a_report_are_secrets_by_fewer_words(name):
    "A class of a map, a column and a number of passes keep their names"
    assert says_secret(name) == (name in PLAINLY) and says_secret(name.lower()) == says_secret(name)
    assert hide({"legend": {name: [3, "#aabbcc"]}}) == {"legend": {name: "***" if name in PLAINLY else [3, "#aabbcc"]}}
    if name in PARAMETERS: assert refuse_secret(name) == name


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_names_are_none(name, monkeypatch, tmp_path):
    assert not names_secret(name) and masked(f"it is {CANARY}.", {name: CANARY}) == f"it is {CANARY}." and refuse_secret(name) == name
    monkeypatch.setenv(name, str(tmp_path))
    assert expanded(f"${name}/x") == tmp_path / "x" and hide({name: "plain"}) == {name: "plain"}


@given(st.sampled_from(["PASS", "PWD", "TOKEN", "TOKENS", "SECRET", "ACCOUNT_KEY", "CONNECTION_STRING", "CREDENTIALS"]), st.text("abcdefgh", min_size=1, max_size=5))
def test_a_word_counts_at_the_end_of_a_name_and_not_within_another(word, more):
    assert names_secret(f"{more}_{word}") and not names_secret(f"{more}_{word}{more}") and names_secret(f"{more}_{word}".lower())
    assert names_secret(f"{more}{word}") == (word != "PASS")


@pytest.mark.parametrize(("name", "value"), [("max_tokens", 4096), ("max_tokens", "4096"), ("N_TOKENS", "1.5e6"), ("mask_pat", "*_mask_of_water.tif"), ("IMAGE_PAT", r"(\w+)_image.tif")])
def test_a_number_of_tokens_and_a_pattern_of_names_are_no_secrets(name, value):
    assert refuse_secret(name, value) == name and hide({name: value}) == {name: value}
    assert masked(f"it is {value}.", {name: str(value)}) == f"it is {value}."
    for found in ("ghp_canary0123456789", "123456789012345"):
        assert hide({name: found}) == {name: "***"} and masked(f"it is {found}.", {name: found}) == "it is ***."
        with pytest.raises(Refused, match="credential"): refuse_secret(name, found)


@pytest.mark.parametrize("name, value", [("MY_SECRET_PAT", "ghp$canary123456"), ("MY_TOKEN_PAT", "canary(def)ghijk"), ("GH_PAT_1", "ghp_canary0123456789")])
def test_what_another_word_calls_a_secret_stays_one(name, value):
    assert masked(f"it is {value}.", {name: value}) == "it is ***."


@pytest.mark.parametrize("value", ["first-canary-12, second-canary-34", '["first-canary-12", "second-canary-34"]', "first-canary-12\nsecond-canary-34"])
def test_of_several_tokens_each_is_a_secret(value):
    said = masked(f"first-canary-12 or second-canary-34 of {value}", {"HF_TOKENS": value})
    assert "canary" not in said and said.startswith("*** or *** of ")


def test_the_logins_of_registries_are_masked_alone():
    "Of Docker's JSON only what is named like a secret"
    value = json.dumps({"auths": {"registry.example.org": {"auth": "bWU6Y2FuYXJ5LTEyMw==", "email": "me@example.org"}}})
    said = masked(f"{value}; Basic bWU6Y2FuYXJ5LTEyMw==", {"DOCKER_AUTH_CONFIG": value})
    assert "bWU6" not in said and "registry.example.org" in said and "me@example.org" in said


def test_a_value_that_is_the_path_of_a_file_is_no_secret(tmp_path, monkeypatch):
    (tmp_path / "account.json").write_text("{}")
    there, gone = str(tmp_path / "account.json"), "/begins+with/a+slash+as/one+key+in+64+does"
    assert secret_values({"GOOGLE_APPLICATION_CREDENTIALS": there, "AWS_TOKEN_FILE": "/etc/none"}) == ()
    assert secret_values({"AWS_SECRET_ACCESS_KEY": gone}) == (gone,)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", there)
    assert str(expanded("$GOOGLE_APPLICATION_CREDENTIALS")) == there


def test_of_a_list_of_values_those_are_secret_that_are_named_so():
    "A connection string of Azure, one of a database, and the key of a service account of Google"
    azure = "DefaultEndpointsProtocol=https;AccountName=lake;AccountKey=canary+1/2==;EndpointSuffix=core.windows.net"
    database = "Server=tcp:db.example.org;User ID=me;Password=canary2;Encrypt=yes"
    account = json.dumps({"type": "service_account", "private_key_id": "canary3-of-an-id", "private_key": "-----BEGIN PRIVATE KEY-----\ncanary4\n", "client_email": "me@x"})
    env = {"AZURE_STORAGE_CONNECTION_STRING": azure, "DB_CONNECTION_STRING": database, "GOOGLE_CREDENTIALS": account}
    said = masked(f"{azure} {database} {account} canary+1/2== canary2", env)
    assert "canary" not in said and "AccountName=lake" in said and "User ID=me" in said and "service_account" in said
    assert "plain-connection" not in masked("plain-connection", {"DB_CONNECTION_STRING": "plain-connection"})


@pytest.mark.parametrize("name, value", [
    ("AWS_CREDENTIAL_EXPIRATION", "2026-11-27T05:55:00+00:00"), ("TOKEN_EXPIRY", "in a day or two"), ("CREDENTIALS_MODE", "chosen-by-user"), ("GIT_CREDENTIAL_HELPER", "store-me"),
    ("AWS_CREDENTIAL_TYPE", "sso-session"), ("TOKEN_ENDPOINT", "login.example.org"), ("CREDENTIALS_ID_FILE", "id-of-me"), ("API_TOKEN_EXPIRES_AT", "tomorrow at noon")])
def test_what_is_said_about_a_secret_is_none(name, value):
    assert masked(f"it is {value}.", {name: value}) == f"it is {value}."


@pytest.mark.parametrize("value", ["2026-11-27", "2026-11-27T05:55:00Z", "2026-11-27 05:55:00.123456", "2026-11-27T05:55+0100", "20261127T055500Z", "4096000", "-12.25", "0.00012345678901", "1.5e-12",
                                   "true", "FALSE", "default", "Required", "disabled", "postgres", "changeme"])
def test_a_number_a_time_and_a_word_of_settings_are_no_secrets(value):
    "The first twelve characters of a time are those of every time of that day"
    said = f"value {value}, at 2026-11-27T05:12:33.001+00:00, from 1.5e-12 to 4096000"
    assert masked(said, {"MY_TOKEN": value, "MY_CREDENTIALS": f"user=me password={value}"}) == said


@pytest.mark.parametrize("value", ["hunter2", "canary", "2026-11-27-canary", "123456789012345", "default-canary", "deadbeef00", "1234567890e12", "1.2.3.4.5.6.7.8"])
def test_anything_else_is_one(value):
    "Also a long row of digits, a word that settings do not have, and what only begins like a time"
    assert masked(f"it is {value}.", {"MY_TOKEN": value}) == "it is ***."


NESTED = json.dumps({"token": "tok-canary", "aws": {"secret": "canary-nested", "region": "eu-central-1"}, "more": [{"password": ["canary-list"]}], "kind": "of-no-account"})
LISTS = {
    "ODBC": ("DRIVER={ODBC Driver 18};SERVER=db.example.org;UID=sa;PWD=canary-odbc", "canary-odbc", "SERVER=db.example.org;UID=sa"),
    "ODBC, braces": ("DRIVER={ODBC Driver 18};PWD={ca;nary}};x};SERVER=db", "ca;nary}};x", "DRIVER={ODBC Driver 18}"),
    "old words": ("Server=db.example.org;User ID=me;Pwd=canary-low", "canary-low", "User ID=me"),
    "quotes": ('Server=db.example.org;Password="can;ary-q";User=me', "can;ary-q", "Server=db.example.org"),
    "a quote in quotes": ("Server=db.example.org;Password='can''ary-q';User=me", "can'ary-q", "Server=db.example.org"),
    "hyphens, digits, dots": ("Server=db.example.org;Password=canary-dash;Trust-Server=yes;9x=1;a.b=2", "canary-dash", "Trust-Server=yes;9x=1"),
    "Azure, shared": ("BlobEndpoint=https://x.example.org/;SharedAccessSignature=sv=2020&sig=canary-sas", "sv=2020&sig=canary-sas", "BlobEndpoint=https://x.example.org/"),
    "libpq": ("host=db.example.org port=5432 user=me password=canary-libpq dbname=x", "canary-libpq", "host=db.example.org port=5432 user=me"),
    "libpq, quotes": (r"host=db.example.org password='ca nary\'x' dbname=x", "ca nary'x", "host=db.example.org"),
    "libpq, alone": ("password=canary-alone", "canary-alone", ""),
    "JSON": (NESTED, "canary-nested", "of-no-account"),
    "JSON, a list in it": (NESTED, "canary-list", "eu-central-1"),
    "JSON, a list": (json.dumps([{"password": "canary-in-list", "of": "somebody"}]), "canary-in-list", "somebody"),
    "address": ("postgresql://me:canary-pw@db.example.org/x?sslmode=require", "canary-pw", "db.example.org/x?sslmode=require"),
    "address, asked": ("https://x.example.org/y?sv=2020&sig=canary-sig&sp=r", "canary-sig", "https://x.example.org/y?sv=2020"),
}


@pytest.mark.parametrize("form", LISTS)
@pytest.mark.parametrize("name", ["DB_CONNECTION_STRING", "PG_DSN", "MY_CREDENTIALS"])
def test_a_secret_in_a_list_is_masked_alone_and_the_rest_is_readable(form, name):
    value, secret, readable = LISTS[form]
    said = masked(f"login {secret} failed: {value}", {name: value})
    assert secret not in said and said.startswith("login *** failed: ") and readable in said


@pytest.mark.parametrize("value", ["a=12345678;token=xyzxyz", NESTED, "one;two-and-more", "Server=x;Password=short", '{"token": "tok-canary", broken', 'Password="never ended;Server=x', "host=db password='never ended",
                                   *(value for value, _, _ in LISTS.values() if "://" not in value)])
def test_what_is_no_list_by_its_name_is_secret_as_a_whole(value):
    "And by a name of lists, where it is not understood"
    assert masked(value, {"PGPASSWORD": value}) == "***" and masked(f"it is {value}.", {"MY_SECRET": value}) == "it is ***."
    if value not in [known for known, _, _ in LISTS.values()] and "xyzxyz" not in value: assert masked(value, {"DB_CONNECTION_STRING": value}) == "***"


@given(st.dictionaries(st.sampled_from(["user", "host", "Data Source", "x-1"]), st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=12), max_size=3),
       st.text("abc;=\"'{}\\ &?", min_size=6, max_size=14).map(lambda s: f"Q{s}Q"), st.sampled_from(["ODBC", "ADO", "libpq", "JSON"]))
def test_a_password_of_any_characters_is_masked_alone_in_every_form(others, secret, form):
    "Written as each form wants it"
    quote = {"ODBC": lambda v: "{" + v.replace("}", "}}") + "}", "ADO": lambda v: '"' + v.replace('"', '""') + '"',
             "libpq": lambda v: "'" + v.replace("\\", "\\\\").replace("'", "\\'") + "'", "JSON": str}[form]
    if form == "libpq": others = {k: v for k, v in others.items() if k.isalpha()}
    pairs = {**others, "password": secret}
    value = json.dumps(pairs) if form == "JSON" else (" " if form == "libpq" else ";").join(f"{k}={quote(v)}" for k, v in pairs.items())
    assert secret not in masked(value, {"DB_CONNECTION_STRING": value})
    assert secret not in masked(f"login {secret}", {"DB_CONNECTION_STRING": value})


def test_a_line_costs_little_and_a_new_secret_is_seen_at_once(monkeypatch):
    "A hundred variables, as a job of a cluster has them: two thousand lines in less than a second, six when every name was looked at for each"
    for i in range(100): monkeypatch.setenv(f"SLURM_SOMETHING_VARIABLE_{i}", "x" * 20)
    monkeypatch.setenv("A_TOKEN", "canary-0123456789")
    began = time.perf_counter()
    for _ in range(2000): assert masked("some canary-0123456789 line") == "some *** line"
    assert time.perf_counter() - began < 2
    monkeypatch.setenv("A_TOKEN", "another-0123456789")
    assert masked("canary-0123456789 another-0123456789") == "canary-0123456789 ***"
    monkeypatch.delenv("A_TOKEN")
    assert masked("another-0123456789") == "another-0123456789"
