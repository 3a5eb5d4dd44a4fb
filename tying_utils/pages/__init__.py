"""What is read without running anything: the documents' numbers, executed notebooks and the site."""
