"""How does a saved adapter look in a browser: a page with task, picture and question, and where the model looked."""
