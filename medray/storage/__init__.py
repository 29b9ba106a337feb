"""Where bytes live: any fsspec URI, whole reads with checksum, atomic commits."""
