"""JSON schemas of what goes over HTTP, for /openapi.json, and one example of each."""

from typing import Any

Schema = dict[str, Any]


def _object(required: str, **properties: Schema) -> Schema:
    return {"type": "object", "required": required.split(), "properties": properties}


def _array(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
_FOUR = _array(NUMBER, minItems=4, maxItems=4)

BOX = _object(
    "box_xyxy_px box_xyxy_mm label score sop_uid",
    box_xyxy_px=_FOUR,
    box_xyxy_mm=_maybe(_FOUR),
    label=TEXT,
    score=NUMBER,
    sop_uid=TEXT,
)
CONFORMITY = _object("score flags", score=_maybe(NUMBER), flags=_array(TEXT))
CASE = _object(
    "key series_uid status label score class_scores boxes volume_ml threshold conformity",
    key=TEXT,
    series_uid=TEXT,
    sop_uid=_maybe(TEXT),
    status={"type": "string", "enum": ["complete", "partial", "refused"]},
    reason=TEXT,
    detail=TEXT,
    label=_maybe(TEXT),
    score=_maybe(NUMBER),
    class_scores={"type": "object", "additionalProperties": NUMBER},
    boxes=_array({"$ref": "#/components/schemas/Box"}),
    volume_ml=_maybe(NUMBER),
    threshold=_maybe(NUMBER),
    mask_threshold=NUMBER,
    conformity=_maybe({"$ref": "#/components/schemas/Conformity"}),
    flags=_array(TEXT),
)
RESULT = _object(
    "model version weights_sha256 notice request_id results timing_ms",
    model=TEXT,
    version=TEXT,
    weights_sha256=TEXT,
    notice=TEXT,
    request_id=TEXT,
    results=_array({"$ref": "#/components/schemas/Case"}),
    timing_ms={"type": "object", "additionalProperties": NUMBER},
)
MODEL = _object(
    "name task version weights_sha256 labels inputs outputs thresholds",
    name=TEXT,
    task=TEXT,
    kind=TEXT,
    version=TEXT,
    weights_sha256=TEXT,
    labels=_array(TEXT),
    inputs=_array(TEXT),
    outputs=_array(TEXT),
    thresholds={"type": "object"},
    modalities=_array(TEXT),
    metrics={"type": "object"},
    upstream=_array(TEXT),
)
MODELS = _object("models", models=_array({"$ref": "#/components/schemas/Model"}))
JOB = _object(
    "id state model progress reason result_url",
    id=TEXT,
    state={"type": "string", "enum": ["queued", "running", "done", "failed"]},
    model=TEXT,
    progress={"type": "number", "minimum": 0, "maximum": 1},
    reason=TEXT,
    detail=TEXT,
    result_url=TEXT,
)
READY = _object(
    "status models",
    status=TEXT,
    models={"type": "object", "additionalProperties": TEXT},
)
LIVE = _object("status", status=TEXT)
PROBLEM = _object(
    "type title status detail reason request_id",
    type=TEXT,
    title=TEXT,
    status={"type": "integer"},
    detail=TEXT,
    reason=TEXT,
    request_id=TEXT,
)
COMPONENTS: dict[str, Schema] = {
    "Box": BOX,
    "Case": CASE,
    "Conformity": CONFORMITY,
    "Job": JOB,
    "Live": LIVE,
    "Model": MODEL,
    "Models": MODELS,
    "Problem": PROBLEM,
    "Ready": READY,
    "Result": RESULT,
}

_SHA256 = "9f2c" * 16
RESULT_EXAMPLE = {
    "model": "pancreas",
    "version": "0.1.0",
    "weights_sha256": _SHA256,
    "notice": "For research use only. Not a medical device, not for clinical decisions.",
    "request_id": "5b3c9c0e8f2d4c1a",
    "results": [
        {
            "key": "0123456789abcdef",
            "series_uid": "2.25.1",
            "sop_uid": None,
            "status": "complete",
            "label": None,
            "score": None,
            "class_scores": {},
            "boxes": [],
            "volume_ml": 71.4,
            "threshold": 0.42,
            "conformity": {"score": 0.93, "flags": []},
            "flags": [],
        }
    ],
    "timing_ms": {"total": 812.4},
}
JOB_EXAMPLE = {
    "id": "3e2f" * 8,
    "state": "running",
    "model": "pancreas",
    "progress": 0.5,
    "reason": "",
    "result_url": "",
}
