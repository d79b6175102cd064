from schnell.cli import main

main()
