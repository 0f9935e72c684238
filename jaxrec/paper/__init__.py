"""Paper tables: what is to be run, the cells, their statistics, and the rendered pages."""
