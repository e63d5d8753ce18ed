package admin

import (
	"embed"
	"io/fs"
	"mime"
	"path"
)

// This file is the dashboard: its files, as they are.

//go:embed web
var web embed.FS

// webTypes are the types of the files. The system's table of types may say otherwise.
var webTypes = map[string]string{
	".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
	".css": "text/css; charset=utf-8", ".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8",
}

func webRoutes() (all []route) {
	files, _ := fs.ReadDir(web, "web") // it is embedded
	for _, f := range files {
		name := f.Name()
		at := "/" + name
		if name == "index.html" {
			at = "/{$}"
		}
		all = append(all, route{method: "GET", path: at, role: RoleRead,
			serve: func(c *call) error { return c.file(name) }})
	}
	return all
}

func (c *call) file(name string) error {
	text, err := web.ReadFile("web/" + name)
	if err != nil {
		return err
	}
	kind := webTypes[path.Ext(name)]
	if kind == "" {
		kind = mime.TypeByExtension(path.Ext(name))
	}
	return c.say(kind, text)
}
