"""How messages and blobs move between roles: by Redis between processes, by memory inside one."""
