"""From a passing verdict to all traffic, and back: registration, staging, promotion, rollback."""
