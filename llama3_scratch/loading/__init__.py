"""The doors: everything that reads or writes files. README.md beside this says what a stranger's file can do."""
