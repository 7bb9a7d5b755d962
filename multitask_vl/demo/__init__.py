"""Web page that asks saved adapters about uploaded images and shows their attention."""
