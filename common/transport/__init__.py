"""Move messages and blobs between roles: through Redis between processes, in memory within one process."""
