"""Networks made fast from outside: blocked weights, recorded calls, the compiler. No network knows of it."""
