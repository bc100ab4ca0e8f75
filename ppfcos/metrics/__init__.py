"""COCO metrics, error types, confusion and calibration."""
