"""What people use from a shell or a test: the `burnish` command, and golden files (`burnish.testing`)."""
