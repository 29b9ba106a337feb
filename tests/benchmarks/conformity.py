"""How well `conformity` tells shifted images from unseen ones of the training's kind; no Ray.

    python -m tests.benchmarks.conformity [--size tiny] [--cases 48] [--seed 0]

Phantoms as they are made, then with crop, scale, noise and offset varied; real files at the end.
"""

import argparse
import csv
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from medray.datasets.conformity import conformity
from medray.datasets.fingerprint import merge_fingerprints, partial_fingerprint
from medray.datasets.loading import load_image
from medray.datasets.record import FileRef, ImageSource, Sample
from medray.metrics.ranking import auroc
from medray.volume import Image2D
from tests.conformity_cases import TASKS, radiograph_shifts, varied, with_values
from tests.unit.source_trees import LocalIO


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--cases", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0, help="of the learned; 100 more: the unseen")
    parser.add_argument("--task", default="", help="tasks whose names hold this")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args()
    rows, references = [], {}
    for task in TASKS:
        if options.task in task:
            found, references[task] = phantom_rows(task, options)
            rows += found
            sys.stderr.write("" if options.quiet else "\n".join(table(found)) + "\n")
    data = os.environ.get("MEDRAY_TEST_DATA")
    if data is not None and not options.task:
        rows += chest_film_rows(Path(data)) + foreign_rows(Path(data), references)
    if options.json:
        sys.stdout.write(json.dumps({"rows": rows, "size": options.size}) + "\n")
    else:
        sys.stdout.write("\n".join(table(rows)) + "\n")
    return 0


def phantom_rows(task, options):
    """Rows of the phantoms as made and varied; the reference of the former."""
    make, shifts_of = TASKS[task]
    size, seeds = options.size, (options.seed, options.seed + 100)
    learned, unseen = ([make(seed, n, size) for n in range(options.cases)] for seed in seeds)
    rng = np.random.default_rng(options.seed)
    fingerprint = merge_fingerprints(map(partial_fingerprint, learned))
    rows = shift_rows(task, fingerprint, unseen, shifts_of(size))
    learned, unseen = ([varied(sample, rng) for sample in group] for group in (learned, unseen))
    other = merge_fingerprints(map(partial_fingerprint, learned))
    return rows + shift_rows(f"{task}, varied", other, unseen, shifts_of(size)), fingerprint


def chest_film_rows(data):
    """Real radiographs: half of the patients learned, the others unseen."""
    folder = data / "cxr" / "nih1000_64px"
    with (folder / "labels.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    images = [(row["patient_id"], grey(load("image_file", [folder / row["file"]]))) for row in rows]
    patients = sorted({patient for patient, _ in images})
    known = set(patients[::2])
    learned = [(patient, sample) for patient, sample in images if patient in known]
    fingerprint = merge_fingerprints(
        (partial_fingerprint(sample) for _, sample in learned),
        groups=[patient for patient, _ in learned],
    )
    unseen = [sample for patient, sample in images if patient not in known]
    shifts = radiograph_shifts("tiny")
    del shifts["modality MG"]  # PNG files have none
    return shift_rows("NIH radiographs, real", fingerprint, unseen, shifts)


def foreign_rows(data, references):
    """Real files of all kinds before models of phantoms."""
    chest = "ct_series/lung_pet_ct_dx_A0001/Lung-PET-CT-Dx/Lung_Dx-A0001"
    named = {
        "chest CT, 5 mm": ("series", sorted((data / chest).glob("*/2.*/*"))),
        "abdomen CT, 2 mm": ("series", (data / "masks/totalsegmentator_dicom/dicom").glob("CT*")),
        "abdomen CT, NIfTI": ("volume_file", [data / "masks/totalsegmentator_nifti/ct.nii.gz"]),
        "breast MR, NRRD": (
            "volume_file",
            [data / "masks/pyradiomics_breast_mr/breast1_image.nrrd"],
        ),
        "chest DX": ("instance", [data / "cxr/dx_dicom/966_fixed.dcm"]),
        "chest PNG": ("image_file", [data / "cxr/nih_boxes/00000001_000.png"]),
        "mammogram DICOM": ("instance", [data / "mammo/nema_mg1/MG1_J2KI.dcm"]),
    }
    rows = []
    for name, (form, paths) in named.items():
        sample = load(form, list(paths))
        is_planar = isinstance(sample.image, Image2D)
        for task, fingerprint in references.items():
            if is_planar == (task == "pneumonia_detection"):
                found = [conformity(sample, fingerprint)]
                rows.append(row_of(f"{task}, of phantoms", f"real {name}", found, None))
    return rows


def load(form, paths):
    files = tuple(FileRef(str(path), path.stat().st_size, "0") for path in paths)
    image, meta = load_image(ImageSource(form=form, files=files), LocalIO())
    return Sample(image=image, meta=meta)


def grey(sample):
    array = sample.image.array
    return with_values(sample, array if array.ndim == 2 else array[..., 0].astype(np.int16))


def shift_rows(name, fingerprint, unseen, shifts):
    began = time.perf_counter()
    inside = [conformity(sample, fingerprint) for sample in unseen]
    seconds = (time.perf_counter() - began) / len(unseen)
    rows = [row_of(name, "none", inside, None)]
    size = len(json.dumps(fingerprint["conformity"]))
    rows[0] |= {"seconds_each": round(seconds, 4), "reference_bytes": size}
    for shift, change in shifts.items():
        found = [conformity(change(sample, n), fingerprint) for n, sample in enumerate(unseen)]
        rows.append(row_of(name, shift, found, inside))
    return rows


def row_of(name, shift, found, inside):
    score = None
    if inside is not None:
        scores = np.array([item.score for item in (*found, *inside)])
        score = float(auroc(-scores, np.arange(len(scores)) < len(found)))
    flags = Counter(flag for item in found for flag in item.flags)
    return {
        "data": name,
        "shift": shift,
        "num_cases": len(found),
        "auroc": score,
        "flagged": sum(item.is_out_of_distribution for item in found) / len(found),
        "median_score": float(np.median([item.score for item in found])),
        "flags": dict(flags.most_common()),
    }


def table(rows):
    lines = [
        "| trained on | shift | cases | AUROC | flagged | median score | flags |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        score = "" if row["auroc"] is None else f"{row['auroc']:.3f}"
        flags = ", ".join(f"{name} {number}" for name, number in row["flags"].items())
        cells = [row["data"], row["shift"], row["num_cases"], score, f"{row['flagged']:.0%}"]
        lines.append(f"| {' | '.join(map(str, cells))} | {row['median_score']:.3f} | {flags} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
