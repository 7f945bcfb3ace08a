"""What the schemas of the STAC extensions demand of an item, as far as maps and models have such fields

No package brings these schemas and a test must not need the network, so their rules are kept here in our own words, by the address that an item
declares. Read from github.com/stac-extensions (all Apache-2.0), in the versions nearest to the declared ones that could be had: projection 1.1,
classification 1.1, raster 1.0 and 2.0.0-beta.1, mlm 1.5; what 2.0.0 renamed (`proj:code`) is as pystac writes it. Where the network is there,
`test_delivery.py::test_the_published_schemas_take_the_items_too` asks the declared schemas themselves.
"""
BASE = "https://stac-extensions.github.io"
NUMBER, WHOLE, TEXT, NAME = {"type": "number"}, {"type": "integer"}, {"type": "string"}, {"type": "string", "minLength": 1}
TYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
         "cint16", "cint32", "cfloat32", "cfloat64", "other"]


def fields(prefix, **known):
    "An object that may have these fields of an extension and no other one; what has another prefix is not its business"
    named = {f"{prefix}:{name}": schema for name, schema in known.items()}
    return {"type": "object", "properties": named, "patternProperties": {f"^(?!{prefix}:)": {}}, "additionalProperties": False}


def any_of(known):
    "At least one field of an extension is there"
    return {"anyOf": [{"required": [name]} for name in known["properties"]]}


def everywhere(known):
    "In the properties, in an asset or in its bands: no unknown field, and one known at least in one of them"
    banded = {"allOf": [known, {"properties": {"bands": {"type": "array", "items": known}}}]}
    one = {"anyOf": [any_of(known), {"required": ["bands"], "properties": {"bands": {"contains": any_of(known)}}}]}
    some_asset = {"not": {"additionalProperties": {"not": one}}}
    return {"required": ["properties", "assets"], "properties": {"properties": banded, "assets": {"additionalProperties": banded}},
            "anyOf": [{"properties": {"properties": one}}, {"properties": {"assets": some_asset}}]}


def numbers(*sizes):
    return {"type": "array", "items": NUMBER, "oneOf": [{"minItems": n, "maxItems": n} for n in sizes]}


CLASS = {"type": "object", "required": ["value", "name"], "additionalProperties": False, "properties": {
    "value": WHOLE, "name": {"type": "string", "pattern": "^[0-9A-Za-z_-]+$"}, "title": TEXT, "description": TEXT, "nodata": {"type": "boolean"},
    "color_hint": {"type": "string", "pattern": "^[0-9A-F]{6}$"}, "percentage": NUMBER, "count": WHOLE}}
CLASSES = {"type": "array", "uniqueItems": True, "minItems": 1, "items": CLASS}

PROJECTION = everywhere(fields(
    "proj", code={"type": ["string", "null"], "pattern": "^[A-Z0-9a-z]+:[0-9A-Za-z]+$"}, wkt2={"type": ["string", "null"]},
    projjson={"type": ["object", "null"]}, geometry={"type": "object"}, bbox=numbers(4, 6), centroid={"required": ["lat", "lon"]},
    shape={"type": "array", "items": WHOLE, "minItems": 2, "maxItems": 2}, transform=numbers(6, 9)))
CLASSIFICATION = everywhere(fields("classification", classes=CLASSES, bitfields={"type": "array", "minItems": 1}))
RASTER = everywhere(fields("raster", bits_per_sample=WHOLE, sampling={"enum": ["area", "point"]}, scale=NUMBER, offset=NUMBER,
                           spatial_resolution=NUMBER, histogram={"required": ["count", "min", "max", "buckets"]}))

BAND = {"type": "object", "minProperties": 1, "properties": {"data_type": {"enum": TYPES}, "unit": TEXT, "scale": NUMBER, "offset": NUMBER, "nodata": {
    "oneOf": [NUMBER, {"enum": ["nan", "inf", "-inf"]}]}}}
RASTER_1 = {"properties": {"assets": {"additionalProperties": fields("raster", bands={"type": "array", "minItems": 1, "items": BAND})}}}

TASKS = {"type": "array", "uniqueItems": True, "items": {"enum": [
    "regression", "classification", "scene-classification", "detection", "object-detection", "segmentation", "semantic-segmentation",
    "instance-segmentation", "panoptic-segmentation", "similarity-search", "generative", "image-captioning", "super-resolution"]}}
ARRAY = {"type": "object", "required": ["shape", "dim_order", "data_type"], "properties": {
    "shape": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": -1}}, "data_type": {"enum": TYPES},
    "dim_order": {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "string", "pattern": "^[a-z-_]+$"}}}}
EXPRESSION = {"type": "object", "required": ["format", "expression"]}
SCALING = {"oneOf": [{"required": ["type", *keys], "properties": {"type": {"const": kind}, **dict.fromkeys(keys, NUMBER)}} for kind, keys in {
    "min-max": ["minimum", "maximum"], "z-score": ["mean", "stddev"], "clip": ["minimum", "maximum"], "clip-min": ["minimum"], "clip-max": ["maximum"],
    "offset": ["value"], "scale": ["value"]}.items()] + [{"required": ["type", "format", "expression"], "properties": {"type": {"const": "processing"}}}]}
INPUT = {"type": "object", "required": ["name", "bands", "input"], "properties": {
    "name": NAME, "description": NAME, "bands": {"type": "array", "items": {"oneOf": [NAME, {"type": "object", "required": ["name"]}]}},
    "input": {"allOf": [ARRAY, {"properties": {"dim_order": {"contains": {"const": "bands"}}}}]},
    "value_scaling": {"oneOf": [{"type": "null"}, {"type": "array", "minItems": 1, "items": SCALING}]}}}
OUTPUT = {"type": "object", "required": ["name", "tasks", "result"], "properties": {
    "name": NAME, "tasks": TASKS, "result": ARRAY, "classification:classes": CLASSES, "post_processing_function": EXPRESSION}}
LEVELS = {"item": ["name", "input", "output", "hyperparameters"], "asset": ["artifact_type", "compile_method", "entrypoint"]}
MODEL = fields(
    "mlm", name={"type": "string", "pattern": r"^[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]$"}, architecture=NAME, framework=NAME, framework_version=TEXT,
    tasks=TASKS, memory_size=WHOLE, total_parameters=WHOLE, pretrained={"type": "boolean"}, pretrained_source={"type": ["string", "null"]},
    batch_size_suggestion=WHOLE, accelerator={"type": ["string", "null"]}, accelerator_constrained={"type": "boolean"}, accelerator_summary=TEXT,
    accelerator_count=WHOLE, input={"type": "array", "items": INPUT}, output={"type": "array", "items": OUTPUT}, artifact_type=NAME,
    compile_method=NAME, entrypoint=NAME, hyperparameters={"type": "object", "minProperties": 1})
IS_MODEL = {"required": ["roles"], "properties": {"roles": {"contains": {"const": "mlm:model"}}}}
NAMED = {"required": ["raster:bands"], "properties": {"raster:bands": {"items": {"required": ["name"], "properties": {"name": NAME}}}}}


def without(level):
    return {"not": {"anyOf": [{"required": [f"mlm:{name}"]} for name in LEVELS[level]]}}


MLM = {"properties": {
    "properties": {"allOf": [MODEL, without("asset"), {"required": [f"mlm:{n}" for n in ("name", "architecture", "tasks", "input", "output")]}]},
    "assets": {"additionalProperties": {"allOf": [MODEL, without("item")], "if": IS_MODEL,
                                        "then": {"allOf": [NAMED, {"required": ["mlm:artifact_type"]}]}, "else": {"not": {"required": ["mlm:artifact_type"]}}},
               "not": {"additionalProperties": {"not": IS_MODEL}}}}}

KEPT = {f"{BASE}/{name}/schema.json": schema for name, schema in {
    "projection/v2.0.0": PROJECTION, "classification/v2.0.0": CLASSIFICATION, "raster/v2.0.0": RASTER, "raster/v1.1.0": RASTER_1, "mlm/v1.4.0": MLM}.items()}
