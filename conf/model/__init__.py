"""The model definitions: one YAML file per family or variant."""
