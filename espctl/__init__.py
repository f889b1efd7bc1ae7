"""The driver of dataset-condensation experiments: commands, database, reports. The mathematics is in `esp`."""

__version__ = "0.1.0"
