"""medray: distributed batch processing for medical imaging on Ray."""

__version__ = "0.1.0"
