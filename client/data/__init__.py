"""From a DICOM folder and a labels table to tensors, patient by patient."""
