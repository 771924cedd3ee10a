"""The workflows under .github/."""
