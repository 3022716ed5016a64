"""fastrl inside other libraries' programs.  Nothing here is imported unless a program asks for it by name."""
