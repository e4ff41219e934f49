from .commands._parser import main

raise SystemExit(main())
