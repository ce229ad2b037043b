"""What is published, in every form, and what can be done with it afterwards."""
