"""From DICOM bytes to headers, series, pixels and volumes, in the standard's terms."""
