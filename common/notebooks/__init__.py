"""A notebook's anatomy: cell roles, graft, normal form, rules, updates, new units."""
