"""Published experiments: their configurations, figures and parameter counts."""
