"""Benchmarks of decoding and resampling, beside MONAI, dcm2niix and pydicom in the same run."""

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom

from medray import storage
from medray.dicom.decoder import process_decoder
from medray.dicom.loading import load_reduced, load_volume
from medray.dicom.series import Instance
from medray.engine.bench_measure import Measure, alternating_medians, median_seconds
from medray.engine.bench_series import JPEG_2000_LOSSLESS, series_on_disk
from medray.engine.convert import ConvertOptions, convert
from medray.formats.nifti import verify_nifti, write_nifti
from medray.preprocess.spatial import resize_volume

_SHAPE = (200, 512, 512)
_SMALL_SHAPE = (60, 256, 256)
_GRID = (160, 160, 160)
_SMALL_GRID = (48, 80, 80)
_ATOL_HU = 0.51  # MONAI interpolates in float32 from another corner; half a stored step
