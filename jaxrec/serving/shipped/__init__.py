"""Files that go into the folder of an exported model, as model.py: they import nothing of ours."""
