"""Parent selection and reference sets."""
