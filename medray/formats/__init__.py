"""Images outside DICOM: NIfTI, NRRD, MHA, PNG, JPEG."""
