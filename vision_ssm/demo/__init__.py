"""Small complete jobs on data that a Python package ships."""
