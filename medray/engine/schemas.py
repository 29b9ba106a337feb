"""Columns of the tables that users read (docs/DESIGN section 5)."""

import pyarrow as pa

INSTANCES = pa.schema(
    [
        ("uri", pa.string()),
        ("bytes", pa.int64()),
        ("mtime_or_etag", pa.string()),
        ("study_uid", pa.string()),
        ("series_uid", pa.string()),
        ("sop_uid", pa.string()),
        ("sop_class_uid", pa.string()),
        ("modality", pa.string()),
        ("transfer_syntax_uid", pa.string()),
        ("rows", pa.int32()),
        ("columns", pa.int32()),
        ("num_frames", pa.int32()),
        ("instance_number", pa.int64()),
        ("position_mm", pa.list_(pa.float64())),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("status", pa.string()),
        ("bucket", pa.int32()),
        ("header", pa.string()),
    ]
)

SERIES = pa.schema(
    [
        ("series_key", pa.string()),
        ("kind", pa.string()),
        ("patient_id", pa.string()),
        ("study_uid", pa.string()),
        ("series_uid", pa.string()),
        ("modality", pa.string()),
        ("num_instances", pa.int32()),
        ("rows", pa.int32()),
        ("columns", pa.int32()),
        ("num_slices", pa.int32()),
        ("spacing_zyx_mm", pa.list_(pa.float64())),
        ("affine_lps", pa.list_(pa.float64())),
        ("transfer_syntax_uid", pa.string()),
        ("pixel_layout", pa.string()),
        ("bytes", pa.int64()),
        ("predicted_peak_bytes", pa.int64()),
        ("verdict", pa.string()),
        ("detail", pa.string()),
        ("flags", pa.list_(pa.string())),
        (
            "instances",
            pa.list_(
                pa.struct(
                    [
                        ("uri", pa.string()),
                        ("bytes", pa.int64()),
                        ("stamp", pa.string()),
                        ("header", pa.string()),
                    ]
                )
            ),
        ),
    ]
)

REJECTED = pa.schema(
    [
        ("key", pa.string()),
        ("uri", pa.string()),
        ("series_uid", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)

RESULTS = pa.schema(
    [
        ("key", pa.string()),
        ("series_uid", pa.string()),
        ("status", pa.string()),
        ("outputs", pa.list_(pa.string())),
        ("score", pa.float64()),
        ("label", pa.string()),
        ("volume_ml", pa.float64()),
        ("conformity", pa.float64()),
        ("flags", pa.list_(pa.string())),
        ("weights_sha256", pa.string()),
    ]
)

SPLIT = pa.schema(
    [
        ("patient_id", pa.string()),
        ("split", pa.string()),
        ("fold", pa.int32()),
        ("strata", pa.string()),
    ]
)
