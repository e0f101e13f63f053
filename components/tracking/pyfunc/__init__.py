"""Models from code: MLflow executes these files when it loads a registered version."""
