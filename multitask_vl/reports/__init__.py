"""What did a run learn: tables, curves and a page with pictures, made from the files of a run folder alone."""
