"""What all HTML pages share: the shell, the style, small helpers and charts."""
