"""Speed of operators and models beside their peers, measured side by side on one machine."""
