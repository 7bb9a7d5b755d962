"""How do images become grid features: image index -> CLIP trunk -> feature store, and looking after such stores."""
