"""Medical images: DICOM series, MedMNIST files, lists of cases, channel-safe views, and procedural head scans."""
