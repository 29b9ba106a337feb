"""The task pancreas_segmentation."""
