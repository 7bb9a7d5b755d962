"""Extraction of image features into feature stores, and maintenance of these stores."""
