"""The layouts that medray reads, and telling which one a folder has."""

from collections.abc import Callable, Iterator, Mapping

from medray.datasets import (
    datalist,
    dicom_mask_folders,
    lung_pet_ct_dx,
    pancreas_ct,
    rsna_breast,
    rsna_pneumonia,
    yolo_folder,
)
from medray.datasets.record import Record, Rejection, SourceTree
from medray.datasets.tcia_manifest import check_manifests
from medray.errors import ConfigError

Reader = Callable[[SourceTree], Iterator[Record | Rejection]]

LAYOUTS: dict[str, Callable[[SourceTree], bool]] = {
    module.NAME: module.matches
    for module in (
        lung_pet_ct_dx,
        rsna_breast,
        rsna_pneumonia,
        pancreas_ct,
        dicom_mask_folders,
        yolo_folder,
        datalist,
    )
}


def detect_layout(tree: SourceTree) -> str:
    """Return the name of the only layout that the files fit.

    Raises:
        ConfigError: if none or several fit.
    """
    fitting = [name for name, fits in LAYOUTS.items() if fits(tree)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ConfigError(
            f"the data fit several layouts: {', '.join(fitting)}; choose one with --layout"
        )
    raise ConfigError(
        f"the data fit no layout of {', '.join(LAYOUTS)}; "
        "give --labels if they lie elsewhere, or write a datalist.json"
    )


def read_layout(tree: SourceTree, readers: Mapping[str, Reader]) -> Iterator[Record | Rejection]:
    """Read a tree with the reader of its layout, and check download manifests.

    Args:
        tree: with a layout's name, or an empty one to detect it.
        readers: the layouts that the task takes.

    Raises:
        ConfigError: if the layout is unknown or none of the task's.
    """
    layout = tree.layout or detect_layout(tree)
    if layout not in readers:
        known = "is unknown" if layout not in LAYOUTS else "is not one that the task reads"
        raise ConfigError(f"layout {layout!r} {known}; choose from {', '.join(readers)}")
    yield from check_manifests(tree)
    yield from readers[layout](tree)
