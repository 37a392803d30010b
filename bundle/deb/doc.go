// Package deb works out which Debian packages a clean target lacks.
//
// Hosts without a line to the outside get their driver and container toolkit as
// .deb files. A closure is the list of files that apt would download for some
// packages on a clean installation of one release:
//
//	ix := deb.NewIndex("amd64")
//	err := deb.ReadRepository(ctx, ix, repo, fetch)      // InRelease → Packages, verified
//	plan, err := ix.Closure(deb.Request{Packages: []string{"nvidia-container-toolkit"}, Installed: clean})
//	for _, f := range plan.Files { fmt.Println(f.URL, f.SHA256, f.Size) }
//
// Trust runs from the archive's keys, which come from the recipe's side and
// never from the archive: they sign InRelease, which names each Packages file by
// sha256 and size, which names each .deb by sha256 and size. A file whose digest
// differs is refused before it is parsed. Nothing is executed and no package is
// opened.
//
// The resolver takes Depends and Pre-Depends, with alternatives, versioned and
// virtual packages, Breaks and Conflicts, as Debian Policy chapter 7 has them;
// Recommends on request. Of several candidates the highest version wins, of
// several alternatives the first that is installed or can be had. It does not
// search: where apt would go back on a choice, it says which packages conflict.
//
// Limits: one architecture (and "all"); no phased updates, no pinning but by
// Request.Pins; by-hash and pdiff files are not used.
package deb
