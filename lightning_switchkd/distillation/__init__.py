"""Student, teacher and objective as one module: pathways, checks, teacher cache and FLOPs."""
