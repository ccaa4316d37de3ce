import sys

from vmxswitch.cli import main

sys.exit(main())
