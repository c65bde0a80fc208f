"""Data of your own: arrays, IDX files, folders of images and text, tables, `datasets` objects."""
