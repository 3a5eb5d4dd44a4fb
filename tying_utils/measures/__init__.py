"""Pure functions on tensors: they know neither training nor files."""
