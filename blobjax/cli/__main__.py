from blobjax.cli import main

main()
