"""HTML pages and tables from the files of run folders."""
