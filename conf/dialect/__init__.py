"""The dialects of published names: one YAML file per way in which programs name and pack the tensors of models."""
