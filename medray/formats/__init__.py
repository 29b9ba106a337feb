"""Images outside DICOM: NIfTI, NRRD, MHA, PNG, JPEG."""

from medray.formats.images import read_image, write_png
from medray.formats.nifti import verify_nifti, write_nifti
from medray.formats.volumes import read_volume

__all__ = ["read_image", "read_volume", "verify_nifti", "write_nifti", "write_png"]
